"""The TUF repository that devices update from: keys, metadata, publishing, offers."""
