"""Large files by digest: store, resumable fetch, sources, neighbours that share (swarm), tensor-aligned chunks."""
