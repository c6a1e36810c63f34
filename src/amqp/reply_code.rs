//! The reply codes of AMQP 0-9-1 (section 1.2), their names and their scope. RabbitMQ's reply-text is
//! `NAME - explanation`; the explanations themselves belong to whoever raises them.

/// What a code closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// a soft error: the channel
    Channel,
    /// a hard error: the connection
    Connection,
}

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $scope:ident;)*) => {
        /// A reply code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ReplyCode { $($(#[$doc])* $variant,)* }

        impl ReplyCode {
            /// The number on the wire.
            pub fn code(self) -> u16 {
                match self { $(ReplyCode::$variant => $code,)* }
            }

            /// The name that opens the reply-text.
            pub fn name(self) -> &'static str {
                match self { $(ReplyCode::$variant => $name,)* }
            }

            /// Whether it closes a channel or the whole connection.
            pub fn scope(self) -> Scope {
                match self { $(ReplyCode::$variant => Scope::$scope,)* }
            }
        }
    };
}

reply_codes! {
    /// a normal close
    Success = 200, "OK", Connection;
    /// a body larger than the server takes
    ContentTooLarge = 311, "CONTENT_TOO_LARGE", Channel;
    /// a mandatory message that no queue took
    NoRoute = 312, "NO_ROUTE", Channel;
    /// an immediate message that no consumer could take
    NoConsumers = 313, "NO_CONSUMERS", Channel;
    /// an operator closed the connection
    ConnectionForced = 320, "CONNECTION_FORCED", Connection;
    /// a virtual host that is not there
    InvalidPath = 402, "INVALID_PATH", Connection;
    /// no permission
    AccessRefused = 403, "ACCESS_REFUSED", Channel;
    /// no such queue or exchange
    NotFound = 404, "NOT_FOUND", Channel;
    /// another connection has it exclusively
    ResourceLocked = 405, "RESOURCE_LOCKED", Channel;
    /// the request contradicts what is there
    PreconditionFailed = 406, "PRECONDITION_FAILED", Channel;
    /// bytes that are no frame
    FrameError = 501, "FRAME_ERROR", Connection;
    /// a frame whose fields cannot be read
    SyntaxError = 502, "SYNTAX_ERROR", Connection;
    /// a method out of its sequence
    CommandInvalid = 503, "COMMAND_INVALID", Connection;
    /// a channel that is not open, or opened twice
    ChannelError = 504, "CHANNEL_ERROR", Connection;
    /// a frame out of its sequence
    UnexpectedFrame = 505, "UNEXPECTED_FRAME", Connection;
    /// the server lacks resources
    ResourceError = 506, "RESOURCE_ERROR", Connection;
    /// forbidden by negotiation or policy
    NotAllowed = 530, "NOT_ALLOWED", Connection;
    /// a feature that is not there
    NotImplemented = 540, "NOT_IMPLEMENTED", Connection;
    /// the server failed
    InternalError = 541, "INTERNAL_ERROR", Connection;
}
