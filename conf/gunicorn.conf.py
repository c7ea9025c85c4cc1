"""gunicorn's settings for the web process; bin/web checks the environment and then starts it with them.

One process is enough: it reads what the jobs wrote and keeps that for two seconds. Two threads for each address are
enough, too: they wait for the same answers of the servers, and never for a client (worker/web/http_server.py).
"""

import os
from pathlib import Path

from worker.runtime import settings
from worker.web.http_connection import HEAD_BYTES

wsgi_app = "worker.web.app:create()"
loaded = settings.load(os.environ, "web")
# the status page first, then what everybody may reach: worker/web/gunicorn_worker.py
bind = [f"0.0.0.0:{port}" for port in (loaded.port, loaded.public_port if loaded.public_url else None) if port]
workers = 1
worker_class = "worker.web.gunicorn_worker.EventLoopWorker"
threads = 2
worker_connections = 512  # the one that stalls longest makes room for the next
limit_request_field_size = HEAD_BYTES  # of all headers together; one may be as long
timeout = 30
graceful_timeout = 5
proc_name = "crm-worker-web"
accesslog = None
logger_class = "worker.web.gunicorn_logs.Logger"
# no file on a disk that may be read-only or slow
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn makes its own file there
# supervisord is what controls it
control_socket_disable = True
