"""The door: HTTP in, stored profiles out, fresh ones composed from the other deployments.

app          binds the deployments into one Serve application
deployment   the ingress deployment: holds the handles    opening    a release and stages -> an engine
http         the FastAPI application around an injected engine
schemas      what answers look like, for OpenAPI          problems   errors as RFC 9457 documents
engine       what each route answers, without HTTP        fresh      a profile computed now
batcher      requests of one moment become one micro-batch
stages       the other deployments, seen through handles, with time limits and reasons
start        starts Ray and the application, for `sonder serve` and tests
proxy        keeps the front proxy and Ray on loopback
"""
