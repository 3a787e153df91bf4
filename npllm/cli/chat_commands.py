"""The commands of a chat: /help, /reset, /retry, /undo, /system, /save and /load."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..apps.chat import Chat
from ..apps.chat_file import read_chat, write_chat
from ..errors import UsageError
from ..loop import Step
from ..storage.paths import user_path
from ..text.similar import hint
from . import report

HELP = {
    "/help": "this list",
    "/reset": "begin a new conversation; the system message stays",
    "/retry": "another reply to the last turn (with --temperature above 0; else it is the same)",
    "/undo": "remove the last turn and its reply",
    "/system [TEXT]": 'show the system message, or set it; /system "" removes it',
    "/save FILE": "write the conversation to a file (JSON)",
    "/load FILE": "go on with the conversation in a file",
    "/exit": "quit, as /quit and Ctrl-D do",
    '"""': 'begin a text of several lines, which ends with """',
    "//TEXT": "send a text that begins with a slash",
}
NAMES = [text.partition(" ")[0] for text in HELP if text[0] == "/" and text[1] != "/"] + ["/quit"]


class Session:
    """A conversation, and what else its commands need.

    chat : the conversation
    model : the model's name, written into files
    how : the options of `Chat.reply`; the seed of the first turn, or None
    retries : how often /retry was used: each time draws anew
    ours : the file that holds this conversation: /save may replace it, and no other
    """

    def __init__(self, chat: Chat, model: str, how: dict[str, Any]) -> None:
        self.chat, self.model, self.how = chat, model, how
        self.retries = 0
        self.ours: Path | None = None

    def options(self) -> dict[str, Any]:
        """The options of the next reply. Each has its own seed; with a given one a conversation is reproducible."""
        seed = self.how["seed"]
        return self.how | {"seed": None if seed is None else seed + len(self.chat.messages) + self.retries}


def obey(session: Session, name: str, rest: str) -> Generator[Step, None, None] | None:
    """Do what a command says; return the reply, if there is one to print. What it did is one line on stderr.

    Raises
    ------
    UsageError : there is no such command, or it cannot be done; then nothing has changed
    """
    chat = session.chat
    if name not in NAMES:
        raise UsageError(
            f"there is no {name}{hint(name, NAMES)}; /help lists the commands, and /{name} sends it as text".replace(
                "?;", "?"
            )
        )
    if rest and name not in ("/system", "/save", "/load"):
        raise UsageError(f"{name}: expected nothing after it, got {rest!r}")
    if name in ("/save", "/load"):
        if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "'\"":  # as a shell needs it for a name with spaces
            rest = rest[1:-1]
        if not rest:
            raise UsageError(f"{name}: expected the name of a file, as in {name} talk.json")
    match name:
        case "/help":
            for text, what in HELP.items():
                report.note(f"  {text:14}  {what}")
        case "/reset":
            chat.reset()
            session.ours = None
            report.note("npllm: a new conversation")
        case "/retry":
            if len(chat.messages) > len(chat.system):
                session.retries += 1
            return chat.retry(**session.options())
        case "/undo":
            report.note(f"npllm: removed the turn {shortened(chat.undo())}")
        case "/system":
            set_system(chat, rest)
        case "/save":
            path = user_path(rest, rest).resolve()
            if path.is_file() and path != session.ours:
                raise UsageError(f"{rest} already exists; choose another name, or delete it first")
            write_chat(rest, chat.messages, session.model)
            session.ours = path
            report.note(f"npllm: wrote {counted(chat)} to {rest}")
        case "/load":
            messages, model = read_chat(rest)
            chat.resume(messages)
            session.ours = user_path(rest, rest).resolve()
            other = "" if model == session.model else f", written with {model}"
            last = f"; the last turn is {shortened(chat.messages[-2]['content'])}" if len(chat.messages) > 1 else ""
            report.note(f"npllm: read {counted(chat)} from {rest}{other}{last}")
    return None


def set_system(chat: Chat, text: str) -> None:
    """Set the system message of a conversation, without a text show it; two quotes remove it."""
    if not text:
        for line in chat.system[0]["content"].splitlines() if chat.system else ["npllm: there is no system message"]:
            report.note(line)
        return
    system = [] if text in ('""', "''") else [{"role": "system", "content": text}]
    chat.resume([*system, *chat.messages[len(chat.system) :]])
    report.note(f"npllm: the system message is {'set' if system else 'removed'}; the conversation goes on")


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, in quotes."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def counted(chat: Chat) -> str:
    """How many turns a conversation has."""
    turns = (len(chat.messages) - len(chat.system)) // 2
    return "1 turn" if turns == 1 else f"{turns} turns"
