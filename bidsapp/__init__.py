"""TransferMRI: pretrained networks brought to the MRI scans of one lab, as a BIDS App."""

__version__ = '0.1.0'
