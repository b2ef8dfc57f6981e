"""Which paths the provider's API has, and which template a path is an instance of."""

import re
from collections.abc import Mapping


class Routes:
    """Templates such as `/v1/voices/{voice_id}`, with the methods each of them takes."""

    def __init__(self, methods: Mapping[str, set[str]]) -> None:
        """Take the methods by template."""
        self._methods = methods
        # The plainest first: `/v1/voices/add` is not the voice "add".
        self._patterns = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), template)
            for template in sorted(methods, key=lambda template: template.count("{"))
        ]

    def template(self, path: str) -> str | None:
        """The template of a path; None if the API has no such path. A template is its own."""
        return next((template for pattern, template in self._patterns if pattern.fullmatch(path)), None)

    def take(self, method: str, path: str) -> bool:
        """Whether the API answers that method at that path or template."""
        template = self.template(path)
        return template is not None and method in self._methods[template]
