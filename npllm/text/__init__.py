"""Text at its edges: the ids of a conversation, and the text of ids that come one by one."""
