"""Looking inside: every number of a pass, what can be told from them, and what changes when one of them does.

trace, patch, compare, runs    values by their names: kept, changed, compared
look, lens, cost               one pass over a text: what it does, block by block, and what it costs
parts, tokens, heatmap         what is shown of it: names and lines of the source, tokens, attention weights
summary, terminal, page        and where: as JSON, as text, as a page for a browser (page.html, page.css, page.js)
"""
