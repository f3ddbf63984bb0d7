"""What happens: the flows that Prefect deploys; the front door is ``convert`` in ``convert``.

Prefect is imported here and in ``infra/`` alone. It puts this folder first on ``sys.path``: no file
or folder here may bear the name of a standard or an installed module.
"""
