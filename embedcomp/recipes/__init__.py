"""What the commands and the Ray steps do: the library's functions in the order of the data path.

count -> train -> measure -> plan -> compress (and control) -> evaluate. Counting, measuring and
evaluating go a piece at a time and their results are sums, so shards of them can run anywhere.
"""

from embedcomp.recipes.check import check as check
from embedcomp.recipes.check import options as options
from embedcomp.recipes.compress import Drift as Drift
from embedcomp.recipes.compress import compress as compress
from embedcomp.recipes.compress import control as control
from embedcomp.recipes.compress import recompress as recompress
from embedcomp.recipes.measure import held_out as held_out
from embedcomp.recipes.measure import layers_of as layers_of
from embedcomp.recipes.measure import measure as measure
from embedcomp.recipes.measure import measure_piece as measure_piece
from embedcomp.recipes.measure import measure_pieces as measure_pieces
from embedcomp.recipes.measure import measure_share as measure_share
from embedcomp.recipes.measure import rows_of as rows_of
from embedcomp.recipes.measure import total as total
from embedcomp.recipes.plan import Planning as Planning
from embedcomp.recipes.plan import plan as plan
from embedcomp.recipes.save import ONLY_BY_CODE as ONLY_BY_CODE
from embedcomp.recipes.save import figures as figures
from embedcomp.recipes.save import on_validation as on_validation
from embedcomp.recipes.save import summary as summary
from embedcomp.recipes.save import summary_line as summary_line
from embedcomp.recipes.train import train as train
from embedcomp.train.fit import quiet as quiet
