"""Penalties within torch.compile, which would not get far into a function that reads autograd's graph.

Imported only while something is being compiled: torch._dynamo takes seconds to load.
"""

from __future__ import annotations

import torch
from torch._dynamo import nonstrict_trace

from ganfast import penalties

# run once, on symbolic tensors, for the graph that it leaves
value_and_gradient = nonstrict_trace(penalties.value_and_gradient)
# run every time, between two graphs
outside_of_it = torch.compiler.disable(penalties.value_and_gradient)
