"""Converts terminal cells with escape sequences (stdin) to SVG (stdout). Called by picture.sh."""

import io
import sys

from rich.console import Console
from rich.text import Text

# Rich's format without its web fonts.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {width} {height}" role="img" aria-label="colibri top in a terminal">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

width, title = int(sys.argv[1]), sys.argv[2]
console = Console(
    record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False
)
for line in sys.stdin.read().rstrip("\n").split("\n"):
    console.print(Text.from_ansi(line), no_wrap=True, overflow="crop", highlight=False)
sys.stdout.write(console.export_svg(title=title, code_format=FORMAT, unique_id="colibri"))
