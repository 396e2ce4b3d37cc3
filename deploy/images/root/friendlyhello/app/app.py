"""The friendly page of the container tutorials: greets, names its container, counts visits where a Redis is at hand."""

import html
import os
import socket

from flask import Flask
from redis import Redis, RedisError

redis = Redis(host="redis", db=0, socket_connect_timeout=0.5, socket_timeout=0.5)
app = Flask(__name__)


@app.route("/")
def hello():
    try:
        visits = redis.incr("counter")
    except RedisError:
        visits = "<i>cannot connect to Redis, counter disabled</i>"
    name = html.escape(os.getenv("NAME", "world"))
    return f"<h3>Hello {name}!</h3><b>Hostname:</b> {socket.gethostname()}<br/><b>Visits:</b> {visits}\n"


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=80)
