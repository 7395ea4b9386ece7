"""Uploads what was logged to W&B offline below a folder: one run a cell, however often it was killed and continued.

    python -m experiments.sync outputs/ablate_upsampling --dry-run
    python -m experiments.sync outputs/ablate_upsampling

Every attempt of a cell leaves a fragment that counts its rows from 0 and does again what came after the last
checkpoint. `wandb sync` would upload both versions, and it stops at a fragment that a kill left empty. Here the
fragments of a cell are joined in a temporary folder into one run without the rows that were done again, and that is
uploaded. The fragments stay as they are; a marker beside each, the one that `wandb sync` writes, says that it is on the
server.
"""

import os
import sys
from pathlib import Path

import rich.table
from rich.text import Text

from experiments.shell.command import command
from experiments.shell.flags import Parser, refuse
from experiments.tracking.attempts import find_runs, plan_rows, state
from experiments.tracking.merge import logged_in, upload


def main() -> None:
    with command() as console:
        parser = Parser(description=__doc__)
        parser.add_argument(
            "folder", type=Path, help="folder of an experiment or a run, such as outputs/ablate_upsampling"
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded and stop")
        parser.add_argument("--unfinished", action="store_true", help="also runs that were killed or have failed")
        parser.add_argument("--entity", help="user or team on the server (default: that of the run, or of the login)")
        parser.add_argument("--project", help="project on the server (default: that of the run)")
        args = parser.parse_args()
        os.environ.pop("WANDB_MODE", None)  # which said offline when the runs were made
        cells = find_runs(args.folder)
        if not cells:
            refuse(f"nothing was logged to W&B offline below {args.folder}: train with --logger wandb")
        todo = [cell for cell in cells if state(cell, args.unfinished).startswith("upload")]
        table = rich.table.Table("run", "parts", "empty", "rows", "done again", "what to do")
        for cell in cells:
            rows, stay = plan_rows(cell)
            counts = (len(cell.fragments), cell.empty, rows, rows - stay)
            what = Text(state(cell, args.unfinished), overflow="fold")
            table.add_row(Text(str(cell.folder), overflow="fold"), *map(str, counts), what)
        console.print(table)
        if not args.dry_run and todo:
            try:
                has_key = logged_in()
            except Exception as error:  # noqa: BLE001  # W&B raises several kinds for a key that is none
                refuse(f"{error}: type `wandb login --relogin`, or set WANDB_API_KEY, and call this again")
            if not has_key:
                refuse("there is no key for W&B: type `wandb login`, or set WANDB_API_KEY, and call this again")
            upload(todo, args.entity, args.project)
        failed = [cell for cell in cells if cell.error]
        for cell in failed:
            console.print(Text(f"error: {cell.folder}: {cell.error}"), soft_wrap=True)
        if not args.dry_run:
            console.print(f"{sum(not cell.error for cell in todo)} uploaded, {len(failed)} failed")
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
