"""An OpenAI-compatible endpoint before one or several engines.

::

    clients === front process ---- leader of replica 0 ---- its other ranks
                (HTTP, text)  \\--- leader of replica 1 ---- its other ranks
                                  (engine, tokens)

The front is a process of its own, a child of the first rank: a thousand slow connections cost the
engine nothing, and when ranks die it is there to say so to whoever waits.
"""
