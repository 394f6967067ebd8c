"""A world whose people, interests and lifecycles are known, for measuring what a model understood.

config      size, seed and random numbers      taxonomy    the words of the catalogue
catalogue   items, weekly popularity           people      rates, interests, lifecycle
sessions    when they come, and for what       actions     what they do on the pages they see
truth       what is true, by the process       observer    what the log can tell of it
visits      who comes after the log's end      choices     how they react to a recommender's lists
true_effect of one policy instead of another
world       `simulate` and `write_world`
"""

from sonder.events.synthetic.config import WorldConfig
from sonder.events.synthetic.world import WorldPart, simulate, write_world

__all__ = ["WorldConfig", "WorldPart", "simulate", "write_world"]
