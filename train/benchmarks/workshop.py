"""One cell of the comparison: train one method on one subject in the usual loop, then measure it with the ruler."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_adapters import FAMILIES, AdapterSet, add_adapter, delete_adapters, save_adapter
from diffusion_adapters.registry import nearest
from train.bases import BaseOptions, inspect_base, load_base, sample
from train.benchmarks.cells import Result
from train.benchmarks.references import REFERENCES, Reference
from train.benchmarks.subjects import folders
from train.data import CachedImages, DataOptions, read_folder
from train.engine import Trainer
from train.evaluate import load_encoders
from train.flags import known_good
from train.output import write
from train.processes import make_accelerator
from train.ruler import Pictures, Protocol, Ruler, Subject
from train.ruler.report import from_sheet, sheet
from train.settings import TrainOptions

METHODS = Path(__file__).parent / "methods.toml"
NAME = "cell"
LOG = logging.getLogger("train")


@dataclass(frozen=True)
class Method:
    """A row of the comparison: an adapter family or a reference, its options, where the sweep begins."""

    label: str
    learning_rate: float
    adapter: str | None = None
    reference: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def attach(self, denoiser: Any, seed: int) -> AdapterSet:
        """Put it on the denoiser, ready to be trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.reference is not None:
                return REFERENCES[self.reference](denoiser, self.options)
            assert self.adapter is not None
            return add_adapter(denoiser, NAME, self.adapter, **self.options)


def load_methods(path: Path = METHODS) -> dict[str, Method]:
    """The methods of a TOML file. Raises ValueError with the table that is wrong."""
    found = {}
    for label, table in tomllib.loads(path.read_text("utf-8")).items():
        own = {name: table.pop(name) for name in ("adapter", "reference", "learning_rate") if name in table}
        method = Method(label, **own, options=table)
        if method.adapter is not None:
            FAMILIES[method.adapter].Config.from_mapping(table)
        elif method.reference not in REFERENCES:
            raise ValueError(f"{path} [{label}]: unknown reference, {nearest(str(method.reference), REFERENCES)}")
        found[label] = method
    return found


class Workshop:
    """Base, encoders and subjects of a protocol, loaded once for all cells."""

    def __init__(self, protocol: Protocol, work_dir: Path, data_dir: Path | None, steps: int | None) -> None:
        self.protocol, self.work_dir = protocol, work_dir
        source = {"pretrained_model_name_or_path": protocol.pretrained_model_name_or_path}
        flat = {k: v for k, v in known_good(source["pretrained_model_name_or_path"]).items() if not isinstance(v, dict)}
        wanted = {**flat, **protocol.train, **({} if steps is None else {"max_train_steps": steps})}
        names = {one.name for one in dataclasses.fields(TrainOptions)}
        self.options = TrainOptions(**{name: value for name, value in wanted.items() if name in names})
        names = {one.name for one in dataclasses.fields(BaseOptions)}
        base_options = BaseOptions(**source | {k: v for k, v in wanted.items() if k in names - set(source)})
        self.folders = {one.name: folders(one, data_dir, work_dir / "subjects") for one in protocol.subjects}
        self.accelerator = make_accelerator(self.options)
        info = inspect_base(base_options)
        self.side = protocol.resolution or info.side
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.accelerator.mixed_precision, torch.float32)
        self.base = load_base(info, base_options, self.accelerator.device, dtype)
        self.encoders = load_encoders(protocol, self.accelerator.device)
        self._base_pictures: dict[Any, Pictures] = {}
        self._rulers: dict[str, Ruler] = {}

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Pictures with whatever is active."""
        settings = {"steps": self.protocol.num_inference_steps, "guidance_scale": self.protocol.guidance_scale}
        return sample(self.base, prompts, seeds, side=self.side, **settings)

    def real_pictures(self, subject: Subject) -> list[Image.Image]:
        """The pictures that a subject is compared with."""
        options = DataOptions(instance_data_dir=self.folders[subject.name][1], center_crop=True)
        return [example.images[0] for example in read_folder(options, self.side, 0).examples]

    def ruler(self, subject: Subject) -> Ruler:
        """The ruler of a subject."""
        if subject.name not in self._rulers:
            real, suite = self.real_pictures(subject), self.protocol.suite_of(subject)
            self._rulers[subject.name] = Ruler(suite, real, *self.encoders)
        return self._rulers[subject.name]

    def base_pictures(self, subject: Subject) -> Pictures:
        """What the base draws for a subject's suite; subjects of the same words share it."""
        suite = self.protocol.suite_of(subject)
        key = (suite.prompts, suite.class_prompts)
        if key not in self._base_pictures:
            self._base_pictures[key] = self.ruler(subject).draw(self.draw)
        return self._base_pictures[key]

    def base_cell(self, subject: Subject, key: str) -> Result:
        """The base without anything, and what its real pictures reach among themselves."""
        ruler, pictures = self.ruler(subject), self.base_pictures(subject)
        self._keep(pictures, key)
        return {"ceiling": ruler.ceiling(), "scores": ruler.score(pictures).as_json(), "encoders": ruler.fingerprints}

    def train_and_draw(
        self, method: Method, rate: float, subject: Subject, seed: int, key: str, steps: int | None = None
    ) -> tuple[Result, Pictures | None]:
        """Train, draw the subject's suite, undo. A training whose loss is no longer finite has no pictures."""
        prompt = self.protocol.instance_prompt.replace("{}", subject.phrase)
        data = DataOptions(instance_data_dir=self.folders[subject.name][0], instance_prompt=prompt)
        examples = read_folder(data, self.side, seed).examples
        dataset = CachedImages(self.base, examples, data, group=self.options.train_batch_size)
        changed = {"seed": seed, "learning_rate": rate, "max_train_steps": steps or self.options.max_train_steps}
        options = dataclasses.replace(self.options, **changed)
        facts: Result = {"method": method.label, "subject": subject.name, **changed}
        adapters = method.attach(self.base.denoiser, seed)
        LOG.setLevel(logging.WARNING)
        try:
            values = [parameter for parameter in adapters.parameters() if parameter.requires_grad]
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                records = list(Trainer(self.accelerator, options, self.base, adapters, dataset).train())
            except RuntimeError as error:
                return facts | {"failed": str(error)}, None
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            tail = records[-max(1, len(records) // 20) :]
            facts |= {"trained": sum(value.numel() for value in values), "bytes": self._size(adapters)}
            facts |= {"seconds": wall, "cpu_seconds": cpu, "loss": sum(r["loss"] for r in tail) / len(tail)}
            adapters.eval()
            pictures = self.ruler(subject).draw(self.draw)
        finally:
            LOG.setLevel(logging.INFO)
            if isinstance(adapters, Reference):
                adapters.undo()
            else:
                delete_adapters(self.base.denoiser, NAME)
        self._keep(pictures, key)
        return facts, pictures

    def cell(self, method: Method, rate: float, subject: Subject, seed: int, key: str) -> Result:
        """Facts and scores of one training; of one that broke down only "failed", the reason."""
        facts, pictures = self.train_and_draw(method, rate, subject, seed, key)
        return facts if pictures is None else facts | self._scores(subject, pictures)

    def outdated(self, result: Result, subject: Subject) -> bool:
        """Whether a result was scored by other encoders than there are now."""
        return "scores" in result and result["encoders"] != self.ruler(subject).fingerprints

    def score_again(self, result: Result, subject: Subject, key: str) -> Result:
        """A result with the scores that its kept pictures get from the encoders that there are now."""
        pictures = self.kept(subject, key)
        assert pictures is not None
        return result | self._scores(subject, pictures)

    def _scores(self, subject: Subject, pictures: Pictures) -> Result:
        ruler = self.ruler(subject)
        scores = ruler.score(pictures, self.base_pictures(subject))
        return {"scores": scores.as_json(), "encoders": ruler.fingerprints}

    def _size(self, adapters: AdapterSet) -> int:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "adapter.safetensors"
            if isinstance(adapters, Reference):
                adapters.save(file)
            else:
                save_adapter(self.base.denoiser, NAME, file)
            return file.stat().st_size

    def kept(self, subject: Subject, key: str) -> Pictures | None:
        """The pictures that an earlier run drew under `key`, if they are there."""
        path = self.work_dir / "pictures" / f"{key}.png"
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return self.ruler(subject).encode(from_sheet(image.convert("RGB"), self.ruler(subject).suite))

    def _keep(self, pictures: Pictures, key: str) -> None:
        folder = self.work_dir / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        image = sheet(pictures)
        write(folder / f"{key}.png", lambda path: image.save(path, "PNG"))
