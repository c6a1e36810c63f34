"""amqp-connection-manager for Node: no confirmed message is lost when the broker restarts under it (node/manager.js)."""

from pathlib import Path

import program

SCRIPT = Path(__file__).parent / "node" / "manager.js"


def test_every_message_is_confirmed_and_arrives_although_the_broker_restarts(restartable, name):
    program.run(["node", SCRIPT, name], restartable, offers={"restart": restartable.restart})
