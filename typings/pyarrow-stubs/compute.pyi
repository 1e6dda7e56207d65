# pyarrow makes the functions of this module when it is imported, where no type checker sees them.
from typing import Any

def __getattr__(name: str) -> Any: ...
