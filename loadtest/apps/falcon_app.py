"""A route of Falcon, answering JSON at `/`."""

import falcon


class Index:
    def on_get(self, request, response):
        response.media = {"hello": "world"}


app = falcon.App()
app.add_route("/", Index())
