"""Does an archive compute what eager computes? Its front door is ``gate``."""
