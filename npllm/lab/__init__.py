"""The lab: a page in the browser with a live model, served on this machine only (`npllm lab`).

worker    the one thread that computes; requests take turns, and stop when nobody waits for them
runs      what a request asks for: a text, parts switched off, values from a second text
memory    what was computed last: passes by their run, and KV caches
answers   the answer to each call, as data for the page
generate  the answer to a prompt, token by token
app       who may ask, what they may send, and the answers as JSON
server    the port, the address, and the end
"""
