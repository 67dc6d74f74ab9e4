"""The small files beside `model.hrt` that MLServer and Ray Serve start from."""

import json
from collections.abc import Mapping

from hrt.export.servers.open_inference import Signature
from hrt.export.servers.settings import Settings
from hrt.export.servers.triton_config import QUEUE_MICROSECONDS

REQUESTS = 64  # that MLServer or Ray Serve put into one batch at most
REPLICAS = 8  # Ray Serve grows to so many times the fewest


def mlserver_files(signature: Signature, settings: Settings, facts: Mapping[str, str]) -> dict[str, str]:
    """`model-settings.json` and `settings.json`, by name."""
    extra = {"max_batch": settings.max_batch, "workers": settings.instances}
    model = {
        "name": settings.name,
        "implementation": "hrt.export.servers.mlserver_runtime.HrtRuntime",
        "platform": "hrt",
        **signature.described(),
        "max_batch_size": REQUESTS,
        "max_batch_time": QUEUE_MICROSECONDS / 1e6,
        "parameters": {"uri": "./model.hrt", "version": "1", "extra": extra},
    }
    # Of the whole server; MLServer reads it from the folder that it is started on.
    server = {"debug": False, "parallel_workers": settings.instances}
    contents = {"model-settings.json": model, "settings.json": server}
    return {name: json.dumps(value, indent=2) + "\n" for name, value in contents.items()}


def ray_files(signature: Signature, settings: Settings, facts: Mapping[str, str]) -> dict[str, str]:
    """`serve.yaml`, the configuration, and `application.py`, which it imports, by name."""
    tensors = [[(t.name, t.shape) for t in side] for side in (signature.inputs, signature.outputs)]
    application = f'''"""Ray Serve imports `app` from here (see serve.yaml). Written by hrt."""

from pathlib import Path

from hrt.export.servers.ray_application import build

app = build(
    Path(__file__).with_name("model.hrt"),
    name={settings.name!r},
    inputs={tensors[0]!r},
    outputs={tensors[1]!r},
    max_batch={settings.max_batch},
)
'''
    fewest = settings.instances
    # Serve.yaml is written as text: its comments are for those who will tune it.
    serve = f"""# Start it in this folder: serve run serve.yaml
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
applications:
  - name: {json.dumps(settings.name)}
    route_prefix: /
    import_path: application:app
    deployments:
      - name: Network
        max_ongoing_requests: {4 * REQUESTS}
        autoscaling_config:
          min_replicas: {fewest}
          max_replicas: {REPLICAS * fewest}
          target_ongoing_requests: {REQUESTS}
          upscale_delay_s: 5
          look_back_period_s: 10
        ray_actor_options:
          num_cpus: 1 # also the threads of one replica
        user_config:
          max_requests: {REQUESTS} # that share a batch
          wait_s: {QUEUE_MICROSECONDS / 1e6} # for others to join
"""
    return {"application.py": application, "serve.yaml": serve}
