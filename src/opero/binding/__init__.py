"""One function under one policy: what is bound, the pipeline of a call, and the path each call takes."""
