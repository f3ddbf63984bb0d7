"""SageMaker: ``model.tar.gz`` of a conversion; the front door is ``write_archive`` in ``archive``.

``handlers`` is what the container calls of it, ``requests`` what a caller may send.
"""
