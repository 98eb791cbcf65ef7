"""The settings of `ringhorn.serve`, for type checkers. docs/settings.md says what each of them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

Text = str | Sequence[str]
Hook = Callable[..., object] | str


class Settings(TypedDict, total=False):
    """What can be set. Everything may be left out."""

    # Sockets
    bind: Text
    backlog: int
    umask: int | str
    # Workers
    workers: int
    worker_class: Literal["sync", "gthread"]
    threads: int
    worker_connections: int
    timeout: float
    graceful_timeout: float
    max_requests: int
    max_requests_jitter: int
    daemon: bool
    enable_stdio_inheritance: bool
    keepalive: float
    preload_app: bool
    reload: bool
    reload_engine: Literal["auto", "poll", "inotify"]
    reload_extra_files: Text
    pin: bool
    io: Literal["auto", "uring", "epoll"]
    # Requests
    limit_request_line: int
    limit_request_fields: int
    limit_request_field_size: int
    limit_request_body: int | str
    body_buffer: int | str
    first_byte_timeout: float
    header_timeout: float
    body_timeout: float
    response_timeout: float
    linger_timeout: float
    request_timeout: float
    queue_timeout: float
    queue_max: int
    slow_request: float
    drain_delay: float
    max_worker_memory: int | str
    max_worker_age: float
    max_worker_age_jitter: float
    forwarded_allow_ips: Text
    secure_scheme_headers: Mapping[str, str]
    forwarder_headers: Text
    proxy_protocol: bool | Literal["off", "v1", "v2", "auto"]
    proxy_allow_ips: Text
    header_map: Literal["drop", "refuse", "dangerous"]
    permit_obsolete_folding: bool
    strip_header_spaces: bool
    permit_unconventional_http_method: bool
    permit_unconventional_http_version: bool
    casefold_http_method: bool
    sendfile: bool
    # Metrics and health
    metrics_bind: str
    health_path: str
    ready_path: str
    request_id_header: str
    # Logs
    accesslog: str
    access_log_format: str
    errorlog: str
    loglevel: Literal["debug", "info", "warning", "error", "critical"]
    capture_output: bool
    logger_class: str | type
    logconfig: str
    logconfig_dict: Mapping[str, Any]
    logconfig_json: str
    syslog: bool
    syslog_addr: str
    syslog_prefix: str
    syslog_facility: str
    disable_redirect_access_to_syslog: bool
    # Metrics
    statsd_host: str
    statsd_prefix: str
    dogstatsd_tags: str
    enable_backlog_metric: bool
    # Process
    chdir: str
    pythonpath: Text
    raw_env: Text
    pidfile: str
    control_socket: str
    control_socket_mode: int
    control_socket_disable: bool
    user: int | str
    group: int | str
    initgroups: bool
    proc_name: str
    # Hooks
    on_starting: Hook
    on_reload: Hook
    when_ready: Hook
    pre_fork: Hook
    post_fork: Hook
    post_worker_init: Hook
    worker_int: Hook
    worker_abort: Hook
    pre_exec: Hook
    pre_request: Hook
    post_request: Hook
    child_exit: Hook
    worker_exit: Hook
    nworkers_changed: Hook
    on_exit: Hook
