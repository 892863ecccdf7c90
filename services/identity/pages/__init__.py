"""What people see of identity in a browser: pages to log in, to accept an invitation, to get back
in, and for one's own account; and the session of the web console.

The pages are plain HTML and work without JavaScript. `browsers` opens and ends sessions for
browsers (cookies), `http` serves the pages, `console` what the web console's pages ask for.
"""
