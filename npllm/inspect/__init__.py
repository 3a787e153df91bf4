"""Looking inside the model: every value of a pass by its name, what it shows, and what changes if it is changed.

record    a tap that collects the values of a pass
trace     every value of a pass over a text, and trace files
patch     a tap that replaces values, to see their effect
edits     heads, layers and neurons switched off, values of another run
heads     what each head looks at, in numbers
attribution  which part said the token
patching  where the answer is: values of one run in another, position by position
compare   two traces, value by value
runs      the two sides of a comparison: a trace file, or a model and how to run it
funnel    the sampling steps, from the whole vocabulary to one token
lens      the logit lens: what each block would predict
tokens    the bytes of tokens, and text that is safe to display
cost      FLOPs and bytes read, part by part
look      one pass, and everything that the terminal, the JSON and the page show of it
parts     each value's description, shape, source line and figure
heatmap   attention weights as characters
structure  the model's layers as lines
summary   a `Look` as plain data, for JSON
where     heads ranked, and the parts of a logit, as data and as text
tables    lines and tables that fit a terminal
terminal  a summary as text
contents  a `Look` as data for the page
page      a `Look` as an HTML page, from the files of the folder page/
labelled  arrays whose axes have names and labels, shown as tables
heat_html  a labelled array as a heat map or bars
contributions  an attribution as a labelled array
frame     sections of the page in a frame of a notebook
view      npllm.look: one pass, and each view of it as an expression
"""
