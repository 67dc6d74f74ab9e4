"""The MLServer runtime that `model-settings.json` names: serves a `.hrt` file."""

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np

# In MLServer's own environment only; nothing else imports this module.
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.errors import InferenceError  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]
from mlserver.utils import get_model_uri  # type: ignore[import-not-found]

from hrt.errors import InputError
from hrt.export.servers.triton_backend import open_artifact


class HrtRuntime(MLModel):
    """A compressed network: FP32 tensors (rows, *shape) in and out. Wrong requests are answered with status 400."""

    async def load(self) -> bool:
        """Read the file that `parameters.uri` names. Raises ArtifactError."""
        path = await get_model_uri(self.settings)
        extra: dict[str, Any] = self.settings.parameters.extra or {}
        threads = max(1, (os.cpu_count() or 1) // max(1, extra.get("workers", 1)))
        self._run = open_artifact(Path(path), threads, max_batch=extra.get("max_batch"))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request, or several that MLServer's adaptive batching merged into one."""
        given = {t.name: t for t in payload.inputs}
        expected = [t.name for t in self.settings.inputs]
        if sorted(given) != sorted(expected) or len(given) != len(payload.inputs):
            raise InferenceError(f"Found inputs {[t.name for t in payload.inputs]}. Expected {expected}.")
        arrays = []
        for name in expected:
            if str(getattr(given[name].datatype, "value", given[name].datatype)) != "FP32":
                raise InferenceError(f"Input {name!r}: found datatype {given[name].datatype}. Expected FP32.")
            arrays.append(np.asarray(NumpyCodec.decode_input(given[name]), dtype=np.float32))
        try:
            answers = await asyncio.to_thread(self._run, arrays)
        except InputError as error:
            raise InferenceError(str(error)) from error
        wanted = {t.name for t in payload.outputs or self.settings.outputs}
        pairs = [(t.name, y) for t, y in zip(self.settings.outputs, answers, strict=True) if t.name in wanted]
        outputs = [NumpyCodec.encode_output(name, y) for name, y in pairs]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
