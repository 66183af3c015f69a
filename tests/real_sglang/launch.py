"""Starts SGLang's server on a CPU: ``python launch.py --model-path DIR --port N …``.

It runs in the environment of `make setup-sglang`, with the folder `stand_ins` on PYTHONPATH. The
torchvision of that environment was built for CUDA: its native library does not load beside a CPU
torch, and without the schemas of its operators its import fails. They are defined here, in front
of any such import; SGLang's child processes run this module's top again.
"""

import sys

import torch

_TORCHVISION = torch.library.Library("torchvision", "DEF")  # kept alive: it goes with its schemas
_TORCHVISION.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_TORCHVISION.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    run_server(prepare_server_args(sys.argv[1:]))
