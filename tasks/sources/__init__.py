"""Where checkpoints come from, one room for each scheme; ``tasks.fetch.checkpoint`` is the door.

Each of ``hub``, ``local`` and ``s3`` offers the functions of ``base.Room``. What they share:
which files a conversion needs (``needed``) and what whole files look like (``verify``).
"""
