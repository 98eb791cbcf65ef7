"""gunicorn.http.errors: never raised here, since requests are refused before Python sees them."""


class ParseException(Exception):
    """A request that cannot be understood."""


class NoMoreData(IOError):
    """The client stopped in the middle of a request."""


class ConfigurationProblem(ParseException):
    """A request that the settings do not allow."""


class InvalidRequestLine(ParseException):
    """A bad request line."""


class InvalidRequestMethod(ParseException):
    """A bad method."""


class InvalidHTTPVersion(ParseException):
    """A bad version."""


class InvalidHeader(ParseException):
    """A bad header field."""


class InvalidHeaderName(ParseException):
    """A bad name of a header field."""


class LimitRequestLine(ParseException):
    """A request line that is too long."""


class LimitRequestHeaders(ParseException):
    """Header fields that are too many or too long."""
