"""From a published archive to a prepared dataset on disk: scanning, checking, preparing, splitting."""
