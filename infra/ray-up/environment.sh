# Read by every node before Ray starts, the same on all of them (services/gateway/proxy.py).
# Passwords are not here: put SONDER_STORE_PASSWORD and the object store's keys into ~/.sonder.env of each machine.
export PATH="$HOME/sonder/venv/bin:$PATH"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_grpc_client_keepalive_time_ms=20000
export RAY_grpc_client_keepalive_timeout_ms=20000
export RAY_SERVE_ENABLE_HA_PROXY=1
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1
export RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S=1
export RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER=1s
export RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response"
export RAY_SERVE_HAPROXY_METRICS_ENABLED=0
export RAY_SERVE_HAPROXY_LOG_TARGET=/tmp/haproxy-log.sock
export PROMETHEUS_MULTIPROC_DIR=/tmp/sonder-metrics
mkdir -p "$PROMETHEUS_MULTIPROC_DIR"
set -a
if [ -f "$HOME/.sonder.env" ]; then . "$HOME/.sonder.env"; fi
set +a
