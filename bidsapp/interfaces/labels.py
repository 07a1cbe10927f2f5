"""Steps around tasks: the network's input, reference labels and predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import Directory, File, TraitedSpec, isdefined, traits

from bidsapp import registry
from bidsapp.bids.derivatives import own_uri
from bidsapp.bids.outputs import write_output
from bidsapp.bids.provenance import FIELD, INSTEAD, name_in
from bidsapp.bids.statistics import write_statistics
from bidsapp.interfaces.base import (
    CaseInput,
    CaseStep,
    ComputingInput,
    RecordingInput,
    Step,
    note,
    note_absent,
)
from bidsapp.learn.cards import load_card, modality_of
from bidsapp.learn.processors import nondeterminism
from bidsapp.learn.ranges import has_ranges, outside
from bidsapp.learn.seen import was_seen
from bidsapp.networks.registry import reads
from bidsapp.problems import BadData, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bidsapp.core import Case, Sample

#: As sidecars have it.
SEEN: Mapping[str, bool | str] = {'yes': True, 'no': False, 'unknown': 'unknown'}


class _Prepared(TraitedSpec):
    network_input = Directory(exists=True)


class NetworkInput(CaseStep):
    """What a network sees of a run, worked out once for all tasks."""

    output_spec = _Prepared

    def step(self, folder: Path) -> dict[str, Any]:
        """All of the run's data."""
        from bidsapp.learn.inputs import save_input

        shutil.rmtree(folder / 'input', ignore_errors=True)  # of an attempt that was cut off
        sample = registry.input(self.inputs.modality).sample(self.case(), {})
        return {'network_input': str(save_input(sample, folder / 'input'))}


class _Outputs(TraitedSpec):
    out_files = traits.List(File(exists=True))


class _ReferenceInput(CaseInput, RecordingInput):
    task = traits.Str(mandatory=True)
    source = traits.Str(mandatory=True)
    out_root = traits.Str(mandatory=True)
    more_sources = traits.List(traits.Str)
    quality = traits.Dict()


class WriteReference(CaseStep):
    """A task's reference label, derived and written."""

    input_spec = _ReferenceInput
    output_spec = _Outputs

    def step(self, folder: Path) -> dict[str, Any]:
        """Only outputs for which the task has a reference are written.

        None where they rest on a T1w image that cannot be used, or where the scan holds no such
        label; both are noted, and the rest goes on.
        """
        task = registry.task(self.inputs.task)
        if task.label is None:
            raise ValueError(f'task {task.name} derives no reference')
        case = self.case()
        root, like = Path(self.inputs.out_root), main_file(case, task.modality)
        quality = dict(self.inputs.quality) if isdefined(self.inputs.quality) else {}
        unused = quality.get('NotUsed')
        more = list(self.inputs.more_sources or [])
        if unused and not all(kind in case.files for kind in task.label.reads):
            t1w = ', '.join(map(name_in, more))
            note(folder, BadData(f'no {task.name} label, for {t1w} cannot be used: {unused}'))
            return {'out_files': []}
        try:
            arrays = task.label.derive(case)
        except Unavailable as reason:
            note_absent(folder, task.name, None, str(reason))
            return {'out_files': []}
        more = [] if unused else more
        source = quality.get('DerivedBy')
        source = source if source in task.learnt[0].references else self.inputs.source
        sidecar: dict[str, Any] = {
            'Sources': [own_uri(like, root), *more],
            **self.inputs.made_from(),
            **quality,
        }
        if source != self.inputs.source:
            sidecar.setdefault(FIELD, {})[INSTEAD] = self.inputs.source
            note_absent(folder, task.name, source, str(quality['Warnings'][-1]))
        further = task.details(arrays)
        written = [
            write_output(root, case.entities, output, own, arrays[output.name], like,
                         {**sidecar, **further.get(output.name, {})})
            for output, own in task.labels(source)
        ]  # fmt: skip
        return {'out_files': [str(path) for path in written]}


class _ApplyInput(ComputingInput):
    modality = traits.Str(mandatory=True)
    network_input = Directory(exists=True, mandatory=True)
    model = Directory(exists=True, mandatory=True)
    model_sha256 = traits.Str(mandatory=True, desc='so that another model is another step')
    tasks = traits.List(traits.Str, mandatory=True)
    scans = traits.List(traits.Str, desc='raw files of this person, by which it is known')
    seen_by_label = traits.Enum('unknown', 'yes', 'no', usedefault=True)


class _Applied(TraitedSpec):
    applied = Directory(exists=True, desc='<task>.npy (K, X, Y, Z) on the grid of the input')
    applied_on = traits.Str(desc='the device that computed it')
    seen_in_training = traits.Enum('unknown', 'yes', 'no')


class ApplyModel(Step):
    """A network over one run: its body once for all the tasks that it serves."""

    input_spec = _ApplyInput
    output_spec = _Applied

    def step(self, folder: Path) -> dict[str, Any]:
        """What comes out of each head, unfinished."""
        from bidsapp.learn.checkpoint import load
        from bidsapp.learn.inputs import open_input
        from bidsapp.learn.predict import network_of, predict_tta, split_heads, turns_of

        checkpoint = load(Path(self.inputs.model))
        sample = open_input(Path(self.inputs.network_input))
        refuse_other_input(checkpoint.card, len(sample.image))
        device, names = self.inputs.device, list(self.inputs.tasks)
        network = network_of(checkpoint, names)
        served = [registry.task(name).head for name in names]
        turned = registry.input(self.inputs.modality).turned
        turns = turns_of(checkpoint.card)
        with nondeterminism(device) as found:
            output = predict_tta(network, sample, served, turns, turned, device)
        heads = {name: checkpoint.card['heads'][name] for name in names}
        kept = folder / 'applied'
        kept.mkdir(exist_ok=True)
        for name, part in split_heads(output, heads).items():
            np.save(kept / f'{name}.npy', part.numpy())
        seen = was_seen(checkpoint.card, map(Path, self.inputs.scans))
        return {
            'applied': str(kept),
            'applied_on': device_name(device)
            + ''.join(f', {op} not deterministic' for op in found),
            # Of a model of before cards held scans, labels say it where they mean anything.
            'seen_in_training': {None: self.inputs.seen_by_label, True: 'yes', False: 'no'}[seen],
        }


class _PredictionInput(CaseInput, RecordingInput):
    network_input = Directory(exists=True, mandatory=True)
    model = Directory(exists=True, mandatory=True)
    model_sha256 = traits.Str(mandatory=True, desc='so that another model is another step')
    task = traits.Str(mandatory=True)
    applied = Directory(exists=True, mandatory=True)
    applied_on = traits.Str(mandatory=True)
    seen_in_training = traits.Enum('unknown', 'yes', 'no', mandatory=True)
    out_root = traits.Str(mandatory=True)
    more_sources = traits.List(traits.Str)


class WritePrediction(CaseStep):
    """What a network said of one run, turned into a task's outputs and written."""

    input_spec = _PredictionInput
    output_spec = _Outputs

    def step(self, folder: Path) -> dict[str, Any]:
        """Every output says which model made it, where, and whether it was made for such scans."""
        from bidsapp.bids.images import onto_run
        from bidsapp.learn.inputs import open_input

        task = registry.task(self.inputs.task)
        case = self.case()
        root, like = Path(self.inputs.out_root), main_file(case, task.modality)
        sample = open_input(Path(self.inputs.network_input))
        arrays = task.finish(self.outputs(task.name, *task.uses), sample, case)
        sidecar = {
            'Sources': [
                *(own_uri(path, root) for path in sources_of(case, task.modality, root)),
                *(self.inputs.more_sources or []),
            ],
            **self.about_model(task.modality, case, sample),
            **self.inputs.made_from(),
        }
        further = task.details(arrays)
        for table in task.tables(case):  # few tasks have one, and some have large arrays
            on_run = {o.name: onto_run(arrays[o.name], sample, like) for o in task.writes}
            write_statistics(root, case.entities, table, table.rows(on_run, case), sidecar)
        written = [
            write_output(root, case.entities, output, 'unet',
                         onto_run(arrays[output.name], sample, like), like,
                         {**sidecar, **further.get(output.name, {})})
            for output in task.writes
        ]  # fmt: skip
        return {'out_files': [str(path) for path in written]}

    def outputs(self, *names: str) -> dict[str, Tensor]:
        """The network's output for tasks of the same model, where it has them."""
        import torch

        paths = {name: Path(self.inputs.applied) / f'{name}.npy' for name in names}
        return {n: torch.from_numpy(np.load(p)) for n, p in paths.items() if p.is_file()}

    def about_model(self, modality: str, case: Case, sample: Sample) -> dict[str, Any]:
        """Fields of a sidecar on the model, and on this run as one of those it is good for."""
        card = load_card(Path(self.inputs.model))
        facts = registry.files(modality).acquisition(case)
        strange = outside(card, facts.quantities(sample))
        said = {
            'ModelName': card['name'],
            'ModelVersion': card['version'],
            'ModelSHA256': card['sha256'],
            'Device': self.inputs.applied_on,
            'SeenInTraining': SEEN[self.inputs.seen_in_training],
            'Warnings': strange,
        }
        return said | ({'WithinTestedRange': not strange} if has_ranges(card) else {})


def main_file(case: Case, modality: str) -> Path:
    """The file that a prepared run is known by; all outputs are on its grid."""
    return case.files[registry.files(modality).prepared.main]


def sources_of(case: Case, modality: str, root: Path) -> list[Path]:
    """The images below ``root`` that a prediction is made from, the main one first."""
    main = main_file(case, modality)
    own = (path for path in case.files.values() if path.is_relative_to(root))
    images = [path for path in own if path.name.endswith('.nii.gz')]
    return [main, *(path for path in images if path != main)]


def refuse_other_input(card: Mapping[str, Any], channels: int) -> None:
    """Raises BadData for a model that was made for another input."""
    if not reads(modality_of(card), card['network'], channels):
        wanted = card['network']['channels_in']
        raise BadData(
            f'Model {card["name"]} {card["version"]} takes {wanted} input channels; this version '
            f'gives {channels}. It was made by another version: use that one, or train it again.'
        )


def device_name(device: str) -> str:
    """'cpu', or the CUDA device with the card's own name."""
    import torch

    return device if device == 'cpu' else f'{device} ({torch.cuda.get_device_name(device)})'
