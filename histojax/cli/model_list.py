"""`histojax models`: the models, their size, their feature maps, and what they are compared with."""

import textwrap

from histojax import models
from histojax.core.text_table import layout
from histojax.models.cost import Shape, measure

_SIZE, _CLASSES, _WIDTH = 224, 1000, 120
