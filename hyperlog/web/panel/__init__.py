"""The control panel: pages for people, in the same server and under the same guard as the API.

    request --Origin, login, role--> page --template--> HTML, whose scripts and styles are our own

Pages are made on the server and work by links and forms; small scripts make them quick. Nothing is
loaded from anywhere else.
"""
