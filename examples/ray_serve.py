"""Our server as a deployment of Ray Serve, which starts replicas, routes to them and restarts them.

    pip install 'jaxs1[serve]' 'ray[serve]'
    JAXS1_SERVE="--model DIR" serve run examples.ray_serve:app

JAXS1_SERVE has arguments of `jaxs1 serve`; those about host, port and keys are Ray's business.
"""

import os
import shlex

from ray import serve

from jaxs1.config import parse
from jaxs1.serving.app import make_app
from jaxs1.serving.config import ServeConfig
from jaxs1.serving.service import Service


def build():
    """The ASGI application of one replica; ready once its model is loaded and compiled."""
    arguments = shlex.split(os.environ["JAXS1_SERVE"])
    service = build.service = Service(parse(ServeConfig, arguments, command="ray serve"))
    app = make_app(service)

    async def served(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await service.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await service.drain()
        await service.close()
        await send({"type": "lifespan.shutdown.complete"})

    return served


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
@serve.ingress(build)
class Server:
    """One engine; `ray_actor_options={"num_gpus": 1}` gives it a GPU."""

    def check_health(self):
        """Ray replaces a replica whose engine has failed."""
        if build.service.state == "failed":
            raise RuntimeError("the engine has failed")


app = Server.bind()
