"""onnxruntime called in a loop: the limit of every server. One process per worker.

Arguments: the model's file, the input's (``.npy``), seconds. Prints a line of JSON.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

model, array, seconds = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
feed = {"x": np.load(array)}
session.run(None, feed)
times = []
cpu, began = time.process_time(), time.perf_counter()
now = began
while now < began + float(seconds):
    session.run(None, feed)
    later = time.perf_counter()
    times.append(later - now)
    now = later
cpu = time.process_time() - cpu
p50, p99 = np.percentile(times, [50, 99])
with open("/proc/self/status") as status:
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
print(
    json.dumps(
        {
            "requests": len(times),
            "duration_s": now - began,
            "p50_s": p50,
            "p99_s": p99,
            "cpu_s": cpu,
            "rss_bytes": rss << 10,
        }
    )
)
