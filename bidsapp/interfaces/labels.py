"""Steps around tasks: the canonical input, reference labels and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

from bidsapp.bids.derivatives import own_uri
from bidsapp.bids.images import open_image
from bidsapp.bids.outputs import write_output
from bidsapp.core import Case
from bidsapp.interfaces.base import ComputingInput, Step
from bidsapp.learn.cards import load_card
from bidsapp.learn.ranges import has_ranges, outside
from bidsapp.modalities.dwi.bids.tables import load_table
from bidsapp.modalities.dwi.physics.acquisition import facts_of
from bidsapp.physics.geometry import voxel_sizes
from bidsapp.problems import BadData

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bidsapp.core import Sample


class CaseInput(BaseInterfaceInputSpec):
    """The files of one preprocessed run."""

    dwi = File(exists=True, mandatory=True)
    bval = File(exists=True, mandatory=True)
    bvec = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    entities = traits.Dict(mandatory=True)


def case_of(inputs: Any, *more: str) -> Case:
    """The Case of a preprocessed run, with further files that are defined."""
    kinds = ['dwi', 'bval', 'bvec', 'mask', *(k for k in more if isdefined(getattr(inputs, k)))]
    return Case(dict(inputs.entities), {kind: Path(getattr(inputs, kind)) for kind in kinds})


class _Canonical(TraitedSpec):
    canonical = Directory(exists=True)


class CanonicalInput(Step):
    """The network's fixed input, computed once for all tasks."""

    input_spec = CaseInput
    output_spec = _Canonical

    def step(self, folder: Path) -> dict[str, Any]:
        """Any gradient table becomes the same channels."""
        from bidsapp.learn.inputs import save_canonical
        from bidsapp.modalities.dwi.learn.input import canonical_sample

        kept = save_canonical(canonical_sample(case_of(self.inputs)), folder / 'canonical')
        return {'canonical': str(kept)}


class _Outputs(TraitedSpec):
    out_files = traits.List(File(exists=True))


class _ReferenceInput(CaseInput, ComputingInput):
    task = traits.Str(mandatory=True)
    source = traits.Str(mandatory=True)
    out_root = traits.Str(mandatory=True)
    tissue_posteriors = File(exists=True)
    fibres = File(exists=True)
    more_sources = traits.List(traits.Str)
    quality = traits.Dict()


class WriteReference(Step):
    """A task's reference label, derived and written."""

    input_spec = _ReferenceInput
    output_spec = _Outputs

    def step(self, folder: Path) -> dict[str, Any]:
        """Only outputs for which the task has a reference are written."""
        from bidsapp import registry

        task = registry.get(self.inputs.task)
        if task.derive is None:
            raise ValueError(f'task {task.name} derives no reference')
        case = case_of(self.inputs, 'tissue_posteriors', 'fibres')
        root = Path(self.inputs.out_root)
        arrays = task.derive(case)
        sidecar: dict[str, Any] = {
            'Sources': [own_uri(case.files['dwi'], root), *(self.inputs.more_sources or [])]
        }
        if isdefined(self.inputs.quality):
            sidecar |= self.inputs.quality
        written = [
            write_output(root, case.entities, output, source, arrays[output.name],
                         case.files['dwi'], sidecar)
            for output, source in task.labels(self.inputs.source)
        ]  # fmt: skip
        return {'out_files': [str(path) for path in written]}


class _ModelInput(ComputingInput):
    canonical = Directory(exists=True, mandatory=True)
    model = Directory(exists=True, mandatory=True)
    model_sha256 = traits.Str(mandatory=True, desc='so that another model is another step')


class _ApplyInput(_ModelInput):
    tasks = traits.List(traits.Str, mandatory=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _Applied(TraitedSpec):
    applied = Directory(exists=True, desc='<task>.npy (K, X, Y, Z) on the grid of the input')
    applied_on = traits.Str(desc='the device that computed it')


class ApplyModel(Step):
    """A network over one run: its body once for all the tasks that it serves."""

    input_spec = _ApplyInput
    output_spec = _Applied

    def step(self, folder: Path) -> dict[str, Any]:
        """What comes out of each head, unfinished."""
        from bidsapp import registry
        from bidsapp.learn.checkpoint import load
        from bidsapp.learn.inputs import open_canonical
        from bidsapp.learn.predict import network_of, predict_turned, split_heads, turns_of

        checkpoint = load(Path(self.inputs.model))
        sample = open_canonical(Path(self.inputs.canonical))
        refuse_other_input(checkpoint.card, len(sample.image))
        device, names = self.inputs.device, list(self.inputs.tasks)
        served = [registry.get(name) for name in names]
        output = predict_turned(
            network_of(checkpoint, names), sample.image, served, turns_of(checkpoint.card), device
        )
        heads = {name: checkpoint.card['heads'][name] for name in names}
        kept = folder / 'applied'
        kept.mkdir(exist_ok=True)
        for name, part in split_heads(output, heads).items():
            np.save(kept / f'{name}.npy', part.numpy())
        return {'applied': str(kept), 'applied_on': device_name(device)}


class _PredictionInput(CaseInput, _ModelInput):
    task = traits.Str(mandatory=True)
    applied = Directory(exists=True, mandatory=True)
    applied_on = traits.Str(mandatory=True)
    seen_in_training = traits.Bool(mandatory=True)
    out_root = traits.Str(mandatory=True)


class WritePrediction(Step):
    """What a network said of one run, turned into a task's outputs and written."""

    input_spec = _PredictionInput
    output_spec = _Outputs

    def step(self, folder: Path) -> dict[str, Any]:
        """Every output says which model made it, where, and whether it was made for such scans."""
        import torch

        from bidsapp import registry
        from bidsapp.bids.images import onto_run
        from bidsapp.modalities.dwi.learn.input import load_sample

        task = registry.get(self.inputs.task)
        case = case_of(self.inputs, 'canonical')
        root, like = Path(self.inputs.out_root), case.files['dwi']
        sample = load_sample(case)
        applied = Path(self.inputs.applied)
        output = torch.from_numpy(np.load(applied / f'{task.name}.npy'))
        if (correction := applied / 'restore.npy').is_file():
            case = case.with_files(correction=correction)
        arrays = task.finish(output, sample, case)
        sidecar = {
            'Sources': [own_uri(like, root), own_uri(case.files['mask'], root)],
            **self.about_model(case, sample),
        }
        further = task.details(arrays)
        written = [
            write_output(root, case.entities, output, 'unet',
                         onto_run(arrays[output.name], sample, like), like,
                         {**sidecar, **further.get(output.name, {})})
            for output in task.writes
        ]  # fmt: skip
        return {'out_files': [str(path) for path in written]}

    def about_model(self, case: Case, sample: Sample) -> dict[str, Any]:
        """Fields of a sidecar on the model, and on this run as one of those it is good for."""
        card = load_card(Path(self.inputs.model))
        variance = None if sample.context is None else float(sample.context[3])
        size = voxel_sizes(open_image(case.files['dwi']).affine)
        strange = outside(card, facts_of(load_table(case), size, variance))
        said = {
            'ModelName': card['name'],
            'ModelVersion': card['version'],
            'ModelSHA256': card['sha256'],
            'Device': self.inputs.applied_on,
            'SeenInTraining': self.inputs.seen_in_training,
            'Warnings': strange,
        }
        return said | ({'WithinTestedRange': not strange} if has_ranges(card) else {})


def refuse_other_input(card: Mapping[str, Any], channels: int) -> None:
    """Raises BadData for a model that was made for another canonical input."""
    if (wanted := card['network']['channels_in']) != channels:
        raise BadData(
            f'Model {card["name"]} {card["version"]} takes {wanted} input channels; this version '
            f'gives {channels}. It was made by another version: use that one, or train it again.'
        )


def device_name(device: str) -> str:
    """'cpu', or the CUDA device with the card's own name."""
    import torch

    return device if device == 'cpu' else f'{device} ({torch.cuda.get_device_name(device)})'
