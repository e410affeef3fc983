"""The types of bound functions, for type checkers and readers. At run time a bound function is a plain function.

They are nominal classes and no protocols, as their descriptors tell methods, class methods and static methods apart by
the function's first parameter: `self: Callable[...]` there is narrower than the class, which type checkers remark upon
and then do as meant. An ABC's methods may be empty, and nobody can make an instance.
"""

from opero.policies.bound_types.bound import AsyncBound as AsyncBound
from opero.policies.bound_types.bound import Bound as Bound
from opero.policies.bound_types.mapped import AsyncMapped as AsyncMapped
from opero.policies.bound_types.mapped import Mapped as Mapped
