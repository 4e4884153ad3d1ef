"""Shaded views a second of the procedural shapes: python benchmarks/rendering.py [--processes 2] [--size 64].

Measured on two cores of an Intel Xeon at 2.1 GHz that others used too: 486 to 527 at 64 px on 2 processes, 351 on one;
139 at 128 px.
"""

import argparse
import sys
import time
from multiprocessing import Pool
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets_scripts.rendering import render_views
from datasets_scripts.shape_geometry import build_mesh
from datasets_scripts.shapes import ShapesConfig, draw_shape


def render(job: tuple[int, int, int]) -> None:
    """Build and render one shape of `small`."""
    number, num_views, size = job
    shape, _, rng = draw_shape(ShapesConfig(name="small"), number)
    render_views(build_mesh(shape, rng), num_views, size)


def main() -> None:
    """Time it, once the processes are up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--num-shapes", type=int, default=200)
    parser.add_argument("--num-views", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    chosen = parser.parse_args()
    jobs = [(number, chosen.num_views, chosen.size) for number in range(chosen.num_shapes)]
    with Pool(chosen.processes) as pool:
        pool.map(render, jobs[: 4 * chosen.processes])
        start = time.perf_counter()
        pool.map(render, jobs, chunksize=5)
        seconds = time.perf_counter() - start
    views = chosen.num_shapes * chosen.num_views
    print(f"{views / seconds:.0f} shaded views/s at {chosen.size} px, 2 x 2 samples, {chosen.processes} processes")


if __name__ == "__main__":
    main()
