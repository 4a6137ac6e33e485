"""The sections of scripts/results/README.md: their titles, texts and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import accelerator_result_tables as accelerators
import cost_tables
import duration_tables
import nipq_result_tables as nipq
import nvit_result_tables as nvit
import result_tables as tables
import token_result_tables as tokens


@dataclass(frozen=True)
class Section:
    """One table of the results page."""

    title: str
    benchmark: str
    source: str
    """File of scripts/results; a pattern where there is one file for each kind of processor."""
    text: str
    table: Callable[[], str]


SECTIONS = (
    Section(
        "INT8 and INT4 of DeiT-Tiny", "int8", "int8-deit-tiny.*.json",
        "DeiT-Tiny with pretrained weights, post-training quantization from 256 training images, one thread, 3 seconds "
        "per file and batch size. Evaluated on 500 classes (500 images) and 1,000 validation images of Imagenette. "
        "Rows in OpenVINO are compared with FP32 in OpenVINO, all others with FP32 in ONNX Runtime.",
        tables.quantized,
    ),
    Section(
        "INT8 of larger models", "int8-speed", "int8-speed.*.json",
        "Speedup over FP32 at batch 1 / batch 8 in ONNX Runtime, one thread, random weights. The pruned and "
        "token-squeezed model has half of the MLP units and keeps 70 % of the tokens in each of three blocks.",
        tables.larger,
    ),
    Section(
        "Latency of each class of operators", "int8-floor", "int8-floor.*.json",
        "DeiT-Tiny with `placement: auto`, batch 1, one thread, minimum of 40 runs in ONNX Runtime's profile. The "
        "lower bound of a GEMM is its MACs at the best rate of square GEMMs; of any other operator, its bytes at the "
        "rate of an addition in cache.",
        tables.floor,
    ),
    Section(
        "INT8 of timm architectures", "int8-timm", "int8-timm-1.0.31.csv",
        "Random weights, default `ptq`, `profile: portable`, two CPU cores.",
        tables.int8_architectures,
    ),
    Section(
        "Time from command to file", "time", "time.*.json",
        "Each row is a process of its own on all cores, from the start of the command to its report. DeiT-T has "
        "pretrained weights and is evaluated on 1,000 images, the others have random weights and 100 images unless the "
        "row says otherwise. Seconds of a stage contain the writing of its file. All tools quantize with the same 256 "
        "images; their seconds are without imports and reading of images. Growth: post-training quantization of a "
        "ViT-Tiny on 64 digits, whose growth in time is divided by that of MACs times images; for candidates, that of "
        "their number in a placement search that none of them ends.",
        duration_tables.durations,
    ),
    Section(
        "Cost of a training step", "training", "training.json",
        "DeiT-Tiny, float32, batch 16, medians of ratios of CPU seconds of the same step. The loop by hand trains the "
        "same model without masks and quantizers; for distillation it also has the teacher and features of four "
        "blocks. Ratios of two runs differed by up to 0.08.",
        cost_tables.training_steps,
    ),
    Section(
        "Start with a million images", "large-index", "large-index.json",
        "From the start of reading to the first batch of 32. The first run reads all images for their digest, a later "
        "one knows it.",
        cost_tables.large_index,
    ),
    Section(
        "Memory and time of large models", "memory", "memory.json",
        "One stage in a process of its own on two cores, random weights, without evaluation and export. The peak "
        "contains about 1 GiB of Python, PyTorch and images.",
        cost_tables.large_models,
    ),
    Section(
        "Intervals of measured speedups", "noise", "noise.json",
        "The dense model of quickstart against a copy of its file, 20 measurements of one second each in ONNX Runtime, "
        "one thread; then against a copy that is slowed down. The intervals are stated at 95 %.",
        cost_tables.intervals,
    ),
    Section(
        "GPUSQ on DeiT-Tiny, step by step", "gpusq", "gpusq-deit-tiny.json",
        "2:4 sparsity, distillation without labels, then quantization. Masks use 256 calibration images unless the row "
        "gives another number; distillation runs for two epochs on Imagenette's training images. Evaluated on 500 "
        "classes (500 images) and 500 validation images. MB on the device is the size in the compressed 2:4 format.",
        tables.sparse,
    ),
    Section(
        "GPUSQ on Caltech-101, with labels", "gpusq-labels", "gpusq-labels.json",
        "DeiT-Tiny fine-tuned on Caltech-101 (100 classes, 2,400 training and 700 validation images). Masks from 512 "
        "training images; 3 epochs of distillation and 2 of quantization-aware training, batch 16, with labels. Judged "
        "on the exported file in ONNX Runtime. W4A8 computes in eight bits, where tensor cores read 2:4; pairs are the "
        "pattern of W4A4.",
        tables.sparse_with_labels,
    ),
    Section(
        "Token squeezing of DeiT-Tiny without training", "tps", "tps-free.json",
        "Each method at several fractions of the MACs of DeiT-Tiny, calibrated on 256 training images of Imagenette. "
        "Without `solver`, one keep rate in blocks 3, 6 and 9. Evaluated on 1,000 validation images of Imagenette and "
        "on 500 classes (500 images).",
        tokens.free,
    ),
    Section(
        "Token squeezing of DeiT-Tiny after training", "tps", "tps-trained.json",
        "All methods with the same three epochs, batch 32. Caltech-101 (100 classes, 2,400 training and 700 validation "
        "images): labels and the dense model as teacher; predictors learn at ten times the rate of the backbone. "
        "Imagenette: the dense model as teacher, no labels.",
        tokens.trained,
    ),
    Section(
        "Latency of token squeezing", "tps", "tps-speed.*.json",
        "Keep rate 0.7 in blocks 3, 6 and 9; ToMe merges 13 tokens in each block. ONNX Runtime, one thread, 3 seconds "
        "per file and batch size, random weights.",
        tokens.speed,
    ),
    Section(
        "Token squeezing of several families", "token-models", "token-models.json",
        "Exported file against the PyTorch model at batches 1, 2 and 7, random weights; or the reason of the refusal.",
        tokens.models,
    ),
    Section(
        "Learned bits of NIPQ beside LSQ", "nipq", "nipq-trained.json",
        "Quantization-aware training with the dense model as teacher, four epochs, batch 32, all weights, activations "
        "and operands of attention. NIPQ trains the last epoch with real quantizers, or the last three where the row "
        "says so, and the others with noise. Digits: the ViT of quickstart, labels. Caltech-101: DeiT-Tiny, "
        "labels. Imagenette: no labels; training on ten classes raises top-1 on them and lowers agreement on 500 "
        "classes. Deployed arms are judged on the exported file in ONNX Runtime.",
        nipq.trained,
    ),
    Section(
        "Cost of a training step of NIPQ", "nipq", "nipq.json",
        "DeiT-Tiny, four bits, all weights, activations and operands of attention, float32, batch 32, median of seven "
        "steps of each in turn. Noise is drawn for every element of weights and activations.",
        nipq.steps,
    ),
    Section(
        "W4A4 without training, and FP8, of DeiT-Tiny", "nipq", "nipq.json",
        "Post-training quantization from 256 training images, no training. Evaluated on 1,000 validation images of "
        "Imagenette and on 500 classes (500 images). W4A4: all activations and attention in four bits, the first and "
        "the last layer in eight. Published rows are ImageNet top-1 of methods that reconstruct blocks.",
        nipq.post_training,
    ),
    Section(
        "Axis inference and pruning of timm architectures", "axes", "axes-timm-1.0.31.csv",
        "Every model is traced, its axes are verified by permutation, every prunable axis is halved, and the result is "
        "trained for one step and exported. Two CPU cores.",
        tables.coverage,
    ),
    Section(
        "Importance scores of DepGraph", "depgraph", "depgraph-deit-tiny.json",
        "DeiT-Tiny pruned uniformly to a fraction of its MACs, then distilled for 30 steps; 500 validation images. "
        "Torch-Pruning gets the same calibration images, number of parameters and training.",
        tables.importances,
    ),
    Section(
        "Error of latency tables", "nvit", "nvit-tables.*.json",
        "Share of the dense latency that a table of DeiT-Tiny estimates, against the measured share: 20 random pruned "
        "models that the table has not seen, batch as in the row, one thread, interleaved with the dense model. "
        "Cross-validated: on the models that the table is built from. For `sim:a100`, against its own estimate of the "
        "whole model.",
        nvit.latency_tables,
    ),
    Section(
        "Latency-aware pruning of DeiT-Tiny after training", "nvit", "nvit-deit-tiny.json",
        "Every method prunes to the same share of the dense latency in ONNX Runtime, batch 1, one thread. The measured "
        "latency is that of the trained model, interleaved with the others. At most two epochs in all: pruning while "
        "training ends when the target is met. `all branches`: the solver removes no attention or MLP as a whole. `eta "
        "0`: the published ranking without the credit of latency, which the recipe `nvit-cpu` uses. Caltech-101: "
        "labels and the dense model as teacher; Isomorphic Hessian, uniform, global and the solver that may remove "
        "branches are from an earlier run, and compared with its Isomorphic Taylor (70.4 % and 39.9 %). Imagenette: no "
        "labels.",
        nvit.trained,
    ),
    Section(
        "Latency-aware pruning of DeiT-Tiny without training", "nvit", "nvit-deit-tiny.json",
        "Shares of the FP32 latency by the table of this processor; the smallest share that keeps 90 % agreement on "
        "500 classes (500 images). Also evaluated on 1,000 validation images of Imagenette. Isomorphic Pruning and the "
        "published steps of NViT shorten the embedding first, so that two shares can give the same model.",
        nvit.free,
    ),
    Section(
        "GEMMs on a GPU", "torch-cuda", "torch-cuda.json",
        "GEMMs of DeiT-B with PyTorch, FP16 latency and speedup over dense FP16. 2:4 uses cuSPARSELt.",
        tables.gpu_gemms,
    ),
    Section(
        "Error of the simulated A100", "gpu-model", "gpu-model.json",
        "Relative error of simulated latency on measured GEMMs that the fit did not include: five folds by shape, 738 "
        "GEMMs.",
        tables.gpu_errors,
    ),
    Section(
        "Whole models on the simulated A100", "published", "published.json",
        "Published speedups and the speedups that `sim:a100` estimates. Launch overhead, attention and operators other "
        "than GEMMs rest on assumed constants.",
        tables.whole_models,
    ),
    Section(
        "Systolic array against SCALE-Sim", "systolic", "systolic.json",
        "Compute cycles of the six GEMMs of a DeiT-Tiny block, by SCALE-Sim and by the closed form of `sim:systolic`. "
        "Process time of both.",
        tables.scalesim,
    ),
    Section(
        "DeiT-Tiny on SpAtten", "spatten", "spatten-deit-tiny.json",
        "Accuracy is computed with the approximations on real images; cycles, latency and energy are simulated with "
        "the counts of each image. Settings are fixed in advance, no training. Evaluated on 1,000 validation images of "
        "Imagenette and on 500 classes (500 images). Latency and energy contain the fully connected layers, but for "
        "the GPT-2-small tables. `heads 0.05` removes none of the three heads. `sim:systolic` with the energy of "
        "horowitz45.",
        accelerators.spatten,
    ),
    Section(
        "DeiT-Tiny on FACT", "fact", "fact-deit-tiny.json",
        "As for SpAtten. The simulator is reconstructed from the paper: values that are not public are assumed, and "
        "the table of assumed values shows how much the result depends on each. Ablation and assumed values: counts of "
        "100 training images.",
        accelerators.fact,
    ),
)  # fmt: skip
