"""A scene in the browser, by viser: while it trains (`live`), and afterwards, with editing (`still`).

| file | what it does |
|---|---|
| `server` | opens the port |
| `live`, `panel` | a run while it trains; nothing of it is changed here, `gsopt.by_hand` does that |
| `still`, `edit` | a trained scene, and what is cut from it |
| `screen`, `pace` | pictures of our own rasterizer for each browser: which size, when |
| `splats` | the Gaussians themselves for the browser to draw |
| `box`, `frusta`, `lens` | the box drawn in the scene, the cameras of the photos, camera conventions |

Everything is rendered on the thread that calls `look`, between two steps of training. Threads of viser only
note what was asked for. docs/viewer.md
"""
