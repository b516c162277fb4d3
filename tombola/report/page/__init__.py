"""The report as one web page: findings become sections, and sections a page that needs nothing but itself.

``findings_of`` collects, ``sections`` renders fragments of HTML, ``page`` wraps them; a server may do the last by
itself and replace fragments as findings grow.
"""
