"""Registers, spills and memory of each kernel, from what ``nvcc -Xptxas -v`` says; fails on spills.

python tests/cuda_resources.py LOG...
"""

import re
import subprocess
import sys
from pathlib import Path

# Bytes of spill stores and loads together that are known: kernel -> bytes. These are a pointer once a tile.
ALLOWED_SPILLS = {f"cuda::gains_kernel<float, 8, (Similarity){kind}>": 16 for kind in range(3)}


def kernels(text):
    """(mangled name, architecture, text about it) of each kernel of one compilation."""
    parts = re.split(r"ptxas info\s*: Compiling entry function '(\w+)' for '(\w+)'", text)
    return zip(parts[1::3], parts[2::3], parts[3::3], strict=True)


def short(name):
    """A demangled name without return type, parameters and namespaces."""
    name = name.replace("(anonymous namespace)::", "").replace("alkernels::", "").removeprefix("void ")
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"\((?:int|bool|unsigned int|long)\)", "", name)


def number(pattern, text):
    """The sum over the kernel and the functions that it calls, of which there is one as a rule: the kernel."""
    return sum(int(n) for n in re.findall(pattern, text))


def main(logs):
    rows = {}
    for log in logs:
        for name, arch, text in kernels(Path(log).read_text()):
            spills = number(r"(\d+) bytes spill stores", text) + number(r"(\d+) bytes spill loads", text)
            figures = number(r"Used (\d+) registers", text), spills, number(r"(\d+) bytes stack", text)
            rows.setdefault((Path(log).name.split(".")[0], name), {})[arch] = (
                *figures,
                number(r"(\d+) bytes smem", text),
            )
    if not rows:
        sys.exit("cuda_resources: no kernel found")
    plain = subprocess.run(["c++filt"], input="\n".join(n for _, n in rows), capture_output=True, text=True, check=True)
    names = [short(n) for n in plain.stdout.splitlines()]
    archs = sorted({a for row in rows.values() for a in row})
    width = max(len(n) for n in names) + 2
    print(f"{'registers/spilled/stack/shared bytes':{width}}" + "".join(f"{a:>20}" for a in archs))
    failed, last = [], None
    for ((source, _), row), name in zip(rows.items(), names, strict=True):
        if source != last:
            print(f"{source}.cu")
            last = source
        cells = ["/".join(map(str, row[a])) if a in row else "" for a in archs]
        print(f"  {name:{width - 2}}" + "".join(f"{c:>20}" for c in cells))
        worst = max(figures[1] for figures in row.values())
        if worst > ALLOWED_SPILLS.get(name, 0):
            failed.append(f"{name} spills {worst} bytes, {ALLOWED_SPILLS.get(name, 0)} are allowed")
    if failed:
        sys.exit("cuda_resources: " + "; ".join(failed))


main(sys.argv[1:])
