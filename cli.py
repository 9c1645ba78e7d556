from funcrobust.cli import main

main()
