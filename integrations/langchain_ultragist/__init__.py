"""LangChain components over gist memories."""
