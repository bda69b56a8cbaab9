"""Peers: compressors of other packages, asked about the same samples in an environment of their own."""

from ultragist_rag.evaluation.peers.launch import PEERS, find_peers_python, is_peer, model_folder, run_peers

__all__ = ["PEERS", "find_peers_python", "is_peer", "model_folder", "run_peers"]
