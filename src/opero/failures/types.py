"""The kinds of exception classes, by package and name, where the class alone says it."""

from __future__ import annotations

from opero.failures.kinds import Kind

_T, _P, _D, _Q, _C = Kind.TRANSIENT, Kind.PERMANENT, Kind.DENIED, Kind.THROTTLED, Kind.CONTROL

TYPES: dict[str, dict[Kind, str]] = {
    # The standard library
    "builtins": {
        _T: "ConnectionError TimeoutError BlockingIOError InterruptedError",
        _P: "TypeError AttributeError NameError ImportError SyntaxError NotImplementedError AssertionError LookupError "
        "RecursionError MemoryError FileNotFoundError FileExistsError IsADirectoryError NotADirectoryError "
        "ProcessLookupError ChildProcessError",
        _D: "PermissionError",  # without a number of the operating system, which decides
    },
    "asyncio": {_T: "IncompleteReadError", _P: "InvalidStateError"},
    "bdb": {_C: "BdbQuit"},
    "concurrent": {_C: "CancelledError"},
    "http": {_T: "IncompleteRead BadStatusLine", _P: "InvalidURL UnknownProtocol"},
    "io": {_P: "UnsupportedOperation"},
    "multiprocessing": {_T: "TimeoutError"},
    "sqlite3": {_P: "ProgrammingError IntegrityError DataError NotSupportedError"},
    "ssl": {_P: "SSLCertVerificationError", _T: "SSLEOFError SSLZeroReturnError SSLSyscallError"},
    "subprocess": {_T: "TimeoutExpired"},
    "unittest": {_C: "SkipTest"},
    "urllib": {_T: "ContentTooShortError"},
    # HTTP clients
    "aiohttp": {
        _T: "ClientConnectionError ClientPayloadError ServerTimeoutError",
        _P: "ClientConnectorCertificateError ServerFingerprintMismatch InvalidURL NonHttpUrlClientError "
        "TooManyRedirects",
        _C: "HTTPException",  # of aiohttp.web
    },
    "h11": {_T: "RemoteProtocolError", _P: "LocalProtocolError"},
    "httplib2": {_T: "ServerNotFoundError"},
    "httpx": {
        _T: "TimeoutException NetworkError ProxyError RemoteProtocolError",
        _P: "UnsupportedProtocol LocalProtocolError TooManyRedirects InvalidURL CookieConflict StreamError",
    },
    "requests": {
        _T: "ConnectionError Timeout ChunkedEncodingError RetryError",
        _P: "InvalidURL InvalidSchema MissingSchema InvalidHeader URLRequired TooManyRedirects UnrewindableBodyError "
        "StreamConsumedError",
    },
    "urllib3": {
        _T: "TimeoutError ProtocolError ProxyError SSLError PoolError ResponseError",
        _P: "ClosedPoolError HostChangedError LocationValueError InvalidHeader URLSchemeUnknown ProxySchemeUnknown "
        "UnrewindableBodyError TimeoutStateError",
    },
    "websockets": {_T: "ConnectionClosedError InvalidMessage", _P: "InvalidURI"},
    # Providers
    "anthropic": {_T: "APIConnectionError"},
    "openai": {_T: "APIConnectionError"},
    "botocore": {
        _T: "ConnectionError HTTPClientError ConnectionClosedError IncompleteReadError ResponseStreamingError "
        "ReadTimeoutError ConnectTimeoutError",
        _D: "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError SSOError "
        "NoAuthTokenError LoginError",
        _P: "ParamValidationError ValidationError NoRegionError DataNotFoundError UnknownServiceError "
        "InvalidConfigError ProfileNotFound UnknownClientMethodError",
    },
    "google": {_T: "RetryError TransportError", _D: "RefreshError DefaultCredentialsError"},
    "redis": {
        _T: "ConnectionError TimeoutError ReadOnlyError TryAgainError ClusterDownError MasterDownError AskError "
        "MovedError WatchError OutOfMemoryError SlotNotCoveredError",
        _D: "AuthenticationError AuthorizationError NoPermissionError AuthenticationWrongNumberOfArgsError",
        _P: "ResponseError DataError NoScriptError InvalidPipelineStack",
    },
    "pymongo": {
        _T: "ConnectionFailure WaitQueueTimeoutError ExecutionTimeout WTimeoutError",
        _P: "ConfigurationError InvalidOperation InvalidName CollectionInvalid DocumentTooLarge DuplicateKeyError",
    },
    "bson": {_P: "BSONError"},
    "sqlalchemy": {
        _T: "TimeoutError DisconnectionError",
        _P: "NoResultFound MultipleResultsFound ArgumentError InvalidRequestError CompileError",
    },
    "amqp": {_T: "RecoverableConnectionError RecoverableChannelError", _D: "AccessRefused"},
    "kombu": {_T: "OperationalError LimitExceeded"},
    "trio": {_T: "TooSlowError BrokenResourceError", _P: "ClosedResourceError NeedHandshakeError BusyResourceError"},
    "anyio": {_T: "BrokenResourceError ConnectionFailed", _P: "ClosedResourceError BusyResourceError"},
    # What frameworks raise to steer, and the answers of web frameworks
    "airflow": {_C: "AirflowSkipException AirflowRescheduleException TaskDeferred"},
    "arq": {_C: "Retry"},
    "billiard": {_C: "SoftTimeLimitExceeded Terminated"},
    "bottle": {_C: "HTTPResponse"},
    "celery": {_C: "TaskPredicate", _T: "TimeoutError", _P: "ImproperlyConfigured"},
    "cherrypy": {_C: "CherryPyException"},
    "click": {_C: "Exit Abort"},
    "typer": {_C: "Exit Abort"},
    "django": {
        _C: "Http404 PermissionDenied SuspiciousOperation BadRequest",
        _P: "ObjectDoesNotExist MultipleObjectsReturned ValidationError ImproperlyConfigured FieldError",
    },
    "dramatiq": {_C: "Retry Interrupt"},
    "falcon": {_C: "HTTPError HTTPStatus"},
    "huey": {_C: "RetryTask CancelExecution"},
    "litestar": {_C: "HTTPException"},
    "ninja": {_C: "HttpError"},
    "pyramid": {_C: "HTTPException"},
    "rest_framework": {_C: "APIException"},
    "rq": {_C: "BaseTimeoutException"},
    "sanic": {_C: "SanicException"},
    "scrapy": {_C: "IgnoreRequest CloseSpider DropItem"},
    "starlette": {_C: "HTTPException WebSocketException WebSocketDisconnect"},
    "tornado": {_C: "HTTPError Finish"},
    "werkzeug": {_C: "HTTPException"},
    # opero itself
    "opero": {
        _T: "CallTimeoutError CircuitOpenError",
        _Q: "RejectedError",
        _P: "ConfigError",
    },
}
"""Package → kind → names of classes. The first class of an exception's method resolution order that is here decides."""

BY_NAME = {
    (package, name): kind for package, kinds in TYPES.items() for kind, names in kinds.items() for name in names.split()
}

DATABASE_API = {
    "OperationalError": _T,
    "IntegrityError": _P,
    "DataError": _P,
    "ProgrammingError": _P,
    "NotSupportedError": _P,
}
"""The classes of PEP 249, which every database driver has; its OperationalError is mostly a lost connection."""

ENDINGS = (("TimeoutError", _T), ("ConnectionError", _T), ("RateLimitError", _Q))
"""How classes of packages that are not listed are named by convention."""


def by_convention(cls: type[BaseException]) -> Kind | None:
    """Return the kind that the names of a class and its bases stand for by convention; None if there is none."""
    names = [base.__name__ for base in cls.__mro__]
    if "DatabaseError" in names:
        for name in names:
            if name in DATABASE_API:
                return DATABASE_API[name]
    for name in names:
        for ending, kind in ENDINGS:
            if name.endswith(ending):
                return kind
    return None
