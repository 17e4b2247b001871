"""One crossbar array: its size, and how many of its columns one weight takes."""

import re
from dataclasses import dataclass

from crosspruner.errors import ConfigError


@dataclass(frozen=True)
class Crossbar:
    """A crossbar of `rows` x `cols` cells: one vector-matrix product per phase.

    Inputs drive the rows, outputs are read from the columns. `str(crossbar)` is "256x256".

    Raises:
        ConfigError: a field is not a whole number of at least 1, or one weight has more cells
            than the crossbar has columns.

    Source: design of the functional crossbar (8-bit, 256 x 256) from Liang et al., IEEE Access
    2018; the bit slicing and the differential pair are the usual ISAAC-style arrangement.
    """

    rows: int
    """Word lines: how many input values one crossbar multiplies at once, >= 1."""
    cols: int
    """Bit lines, in cells, >= 1. Weights per row = cols // cells_per_weight."""
    weight_bits: int = 8
    """Bits of one weight, >= 1. Raise above cell_bits to slice a weight over several cells."""
    cell_bits: int = 8
    """Bits that one cell stores, >= 1. The default holds a whole weight in one cell."""
    differential: bool = False
    """Store each weight as a pair of columns (positive minus negative part)."""

    def __post_init__(self) -> None:
        for field in ("rows", "cols", "weight_bits", "cell_bits"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                size = "crossbar=256x256" if field in ("rows", "cols") else f"crossbar.{field}=8"
                raise ConfigError(
                    f"crossbar {field}={value!r}: it must be a whole number of at least 1, "
                    f"for example {size}."
                )
        if self.weight_columns < 1:
            raise ConfigError(
                f"crossbar {self}: one weight takes {self.cells_per_weight} columns "
                f"(weight_bits={self.weight_bits}, cell_bits={self.cell_bits}, "
                f"differential={self.differential}) but there are only {self.cols}. "
                "Use more columns, larger cell_bits or fewer weight_bits."
            )

    @classmethod
    def parse(
        cls,
        size: "str | Crossbar",
        *,
        weight_bits: int = 8,
        cell_bits: int = 8,
        differential: bool = False,
    ) -> "Crossbar":
        """Reads a size such as "256x256" (rows x cols) or "256" (square).

        Args:
            size: the text; a `Crossbar` is returned as it is.
            weight_bits: as the field.
            cell_bits: as the field.
            differential: as the field.

        Returns:
            The crossbar.

        Raises:
            ConfigError: the text is not a size, or a number in it is below 1.
        """
        if isinstance(size, Crossbar):
            return size
        match = re.fullmatch(r"\s*(\d+)(?:\s*[xX×]\s*(\d+))?\s*", str(size))
        if match is None:
            raise ConfigError(
                f"crossbar={size!r} is not a size: write rows x columns, for example "
                "crossbar=256x256 or crossbar=128x64."
            )
        rows, cols = int(match[1]), int(match[2] or match[1])
        return cls(rows, cols, weight_bits, cell_bits, differential)

    @property
    def cells_per_weight(self) -> int:
        """Columns that one weight takes: its bit slices, twice over if differential."""
        return -(-self.weight_bits // self.cell_bits) * (2 if self.differential else 1)

    @property
    def weight_columns(self) -> int:
        """Whole weights that fit side by side in one row."""
        return self.cols // self.cells_per_weight

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"
