//! Mutual TLS: identities, client and server configurations, join tokens.
