"""Ray Serve deployments, one folder each, thin shells around pure functions of `sonder`.

embedding      histories -> user vectors
segmentation   histories -> interests and lifecycle
scoring        histories and vectors -> calibrated scores with their drivers
retrieval      vectors -> nearest items and users
gateway        HTTP; reads stored profiles in process and composes the others through handles

A service never imports another one; `gateway/app.py` alone binds them.
"""
